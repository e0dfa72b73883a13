"""The systems that FashionBERT is compared with, small and faithful, on the same stores, splits and lists.

    systems.fit("cca", store) -> system, system.save(system, RUN)      by `fashionbert baseline`
    systems.load(RUN, store) -> Scorer                                  by `fashionbert evaluate`

A system encodes titles and photos once each and scores pairs of what came of them (`system.Baseline`).
"""

MODEL_TYPE = "fashionbert-baseline"  # of config.json
DEFAULT_CORE = "all-minilm-l6-v2"

# name -> (class in this package, one line for `fashionbert baseline --help`); imported when it is asked for
SYSTEMS = {
    "cca": ("cca.Cca", "canonical correlations of mean patch and [LSA ; BERT mean], in closed form"),
    "mlp": ("contrastive.Mlp", "perceptrons over the same vectors, InfoNCE"),
    "infonce": ("contrastive.DualEncoder", "dual encoder, BERT and patches, InfoNCE"),
    "vse": ("contrastive.Vse", "the same with the hinge summed over wrong pairs"),
    "vse++": ("contrastive.VsePlusPlus", "the same with the hinge of the hardest wrong pair"),
    "scan-t2i": ("cross_attention.Scan", "SCAN: each word attends to regions"),
    "scan-i2t": ("cross_attention.ScanImageToText", "SCAN: each region attends to words"),
    "pfan-t2i": ("cross_attention.Pfan", "PFAN: SCAN whose regions know their position"),
    "pfan-i2t": ("cross_attention.PfanImageToText", "the same, each region attends to words"),
    "dcca": ("deep_cca.DeepCca", "deep CCA of the vectors that cca has"),
    "dccae": ("deep_cca.DeepCcaAutoencoder", "the same with autoencoders"),
    "vilbert": ("two_stream.TwoStream", "two streams with co-attention, one logit a pair"),
    "vlbert": ("regions.SingleStream", "one stream over words, the whole photo and clusters of its patches"),
    "random": ("guessers.Random", "a number drawn for each pair"),
    "category": ("guessers.Category", "whether title and photo are of one sub-category, which the store tells it"),
    "text": ("guessers.TextAlone", "a number of the title alone"),
    "photo": ("guessers.PhotoAlone", "a number of the photo alone"),
}
