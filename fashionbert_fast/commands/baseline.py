"""`fashionbert baseline`: one of the systems that FashionBERT is compared with, fitted on a store."""

from __future__ import annotations

import argparse
from pathlib import Path

from fashionbert_fast.errors import InputError

EPILOG = """examples:
  fashionbert baseline cca --data stores/shop --out runs/cca
  fashionbert baseline infonce --data stores/shop --out runs/infonce --seconds 300 --seed 1
  fashionbert baseline infonce+cca --parts runs/infonce runs/cca --data stores/shop --out runs/sum
  fashionbert evaluate --checkpoint runs/cca --data stores/shop --split test

systems (docs/baselines.md says what each is and where it comes from):
{systems}
  A+B           the weighted sum of two of them, the weight from the validation split

Fitted on the training split; the epoch with the best recall on lists of the validation split is kept. RUN is for
`fashionbert evaluate`, with all of its options but --protocol queries and --recognition."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fashionbert_fast.baselines import DEFAULT_CORE, SYSTEMS

    parser.epilog = EPILOG.format(systems="\n".join(f"  {name:<13} {what}" for name, (_, what) in SYSTEMS.items()))
    add = parser.add_argument
    # fmt: off
    add("name", metavar="NAME", help="the system")
    add("--data", required=True, type=Path, metavar="STORE", help="feature store written by `fashionbert prepare`")
    add("--out", required=True, type=Path, metavar="RUN", help="the directory to write")
    add("--seed", type=int, default=0, help="of weights, batches and validation lists (default: %(default)s)")
    add("--seconds", type=float, metavar="S", help="to fit in, all told (default: the system's own number of epochs)")
    add("--epochs", type=int, metavar="N", help="over the training split, in place of --seconds")
    add("--core", default=DEFAULT_CORE, metavar="BERT",
        help="a BERT to read titles with: a checkpoint directory, a hub id or an alias (default: %(default)s)")
    add("--parts", nargs=2, type=Path, metavar=("RUN_A", "RUN_B"),
        help="of A+B: take these two, which were fitted before, rather than fit them")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    """Fit and write; 0 when RUN is written. InputError for what a user can mend."""
    from fashionbert_fast.baselines.fitting import Budget
    from fashionbert_fast.baselines.system import save
    from fashionbert_fast.baselines.systems import fit
    from fashionbert_fast.features.store import FeatureStore

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise InputError(f"--out: {args.out} is there already; choose another, or take it away")
    budget = Budget(seconds=args.seconds, epochs=args.epochs)
    store = FeatureStore.open(args.data)
    system = fit(args.name, store, seed=args.seed, budget=budget, core=args.core, parts=args.parts)
    save(system, args.out)
    done = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in system.fitted.items() if not isinstance(value, str))  # fmt: skip
    print(f"{args.out}: {args.name} ({done})")
    print(f"next: fashionbert evaluate --checkpoint {args.out} --data {args.data}")
    return 0
