"""VL-BERT in small: its regions by hand and against scikit-learn; with patches as regions it is FashionBERT."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from fashionbert_fast.baselines.inputs import TitleEncoder, patches
from fashionbert_fast.baselines.regions import SingleStream, box_waves, boxes_of_grid, cluster, regions
from fashionbert_fast.data.pairs import collate_pairs
from fashionbert_fast.model.fashionbert import FashionBert


def test_boxes_of_a_grid():
    assert boxes_of_grid(2).tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]


def test_regions_of_a_photo_of_two_halves():
    """Left half one feature, right half another: no cluster has patches of both, boxes stay within their half, and the
    whole photo comes first."""
    left = torch.arange(64) % 8 < 4
    features_PD = torch.where(left[:, None], torch.tensor([9.0, 0.0]), torch.tensor([0.0, 9.0]))
    mean_RD, box_R4, live_R = (part[0] for part in regions(features_PD[None], 8))
    assert live_R[0] and box_R4[0].tolist() == [0, 0, 1, 1] and mean_RD[0].tolist() == [4.5, 4.5]
    for mean_D, box_4 in zip(mean_RD[1:][live_R[1:]].tolist(), box_R4[1:][live_R[1:]].tolist(), strict=True):
        assert (mean_D, box_4[2] <= 0.5) == ([9, 0], True) or (mean_D, box_4[0] >= 0.5) == ([0, 9], True)
    of_P = cluster(features_PD[None], 8)[0]
    covered = torch.zeros(8, 8, dtype=torch.int64)
    for number, box_4 in enumerate(box_R4[1:]):
        x1, y1, x2, y2 = (box_4 * 8).round().int().tolist()
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[y1:y2, x1:x2] = True
        assert inside.flatten()[of_P == number].all()
        covered += (of_P == number).reshape(8, 8)
    assert (covered == 1).all()


def test_clusters_are_scikit_learn_s_from_the_same_start():
    features_PD = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    point = torch.nn.functional.normalize(features_PD, dim=1)
    middle = boxes_of_grid(8)
    point = torch.cat([point, (middle[:, :2] + middle[:, 2:]) / 2], dim=1).numpy()
    start = [point[np.linalg.norm(point - point.mean(0), axis=1).argmax()]]
    while len(start) < 8:
        nearest = [min(np.linalg.norm(one - other) for other in start) for one in point]
        start.append(point[int(np.argmax(nearest))])
    theirs = KMeans(8, init=np.stack(start), n_init=1, max_iter=9, tol=0, algorithm="lloyd").fit(point)
    np.testing.assert_array_equal(cluster(features_PD[None], 8)[0], theirs.labels_)


def test_with_patches_as_regions_it_is_fashionbert(planted, core):
    """Boxes mapped to the positions, no photo in the words: the same [CLS], title by title."""
    torch.manual_seed(0)
    theirs = FashionBert.from_bert(core, patch_feature_size=24, patches=4).eval()
    encoder = TitleEncoder.from_bert(core)
    system = SingleStream(text=encoder.options, grid=2, features=24)
    system.encoder = encoder
    system.encoder.bert.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if not k.startswith("patch_")}, strict=False
    )
    embeddings, waves = theirs.patch_embeddings, box_waves(boxes_of_grid(2))
    with torch.no_grad():
        system.projection.weight.copy_(embeddings.projection.weight)
        system.region_norm.load_state_dict(embeddings.norm.state_dict())
        embeddings.position.weight.copy_(system.geometry(waves))
        system.open(planted).eval()
        rows, images = np.arange(20), np.arange(20)[::-1].copy()
        photos = patches(planted, images), boxes_of_grid(2).expand(20, 4, 4), torch.ones(20, 4, dtype=torch.bool)
        with_photo = system.first_states(system.titles(rows), photos)
        system.visual.weight.zero_()
        ours = system.first_states(system.titles(rows), photos)
        expected = theirs.encode_cls(collate_pairs(planted, encoder.titles, rows, images))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (with_photo - ours).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [1, 2, 8])
def test_a_box_s_waves_tell_boxes_apart(grid):
    waves_PF = box_waves(boxes_of_grid(grid))
    distance = torch.cdist(waves_PF, waves_PF) + 9 * torch.eye(grid**2)
    assert distance.min() > 0.1 and waves_PF.abs().max() <= 1
