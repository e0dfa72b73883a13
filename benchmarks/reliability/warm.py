"""What ranks are forked from: all that a run imports, without a thread or a process group."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "error")

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401
import deepspeed.runtime.zero.stage3  # noqa: E402, F401
import pyarrow.dataset  # noqa: E402, F401
import tokenizers  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401
import torch._inductor.compile_fx  # noqa: E402, F401
import torch.utils.cpp_extension  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401
import transformers.optimization  # noqa: E402, F401
from transformers import BertTokenizerFast, PreTrainedTokenizerFast  # noqa: E402, F401

import fashionbert_fast.cli  # noqa: E402, F401
import fashionbert_fast.engine.flat  # noqa: E402, F401
import fashionbert_fast.engine.loop  # noqa: E402, F401
import fashionbert_fast.engine.plots  # noqa: E402

fashionbert_fast.engine.plots.plot_run = lambda *_: None  # a second of each run, and of no proof here
