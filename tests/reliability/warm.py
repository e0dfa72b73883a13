"""What ranks are forked from: all that a run imports, without a thread or a process group."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "error")

import deepspeed.runtime.zero.muon.muon_optimizer
import deepspeed.runtime.zero.stage3  # noqa: F401
import PIL.Image
import pyarrow.dataset  # noqa: F401
import tokenizers  # noqa: F401
import torch._dynamo
import torch._inductor.compile_fx
import torch.utils.cpp_extension
import torch.utils.tensorboard  # noqa: F401
import transformers.optimization  # noqa: F401
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, ResNetConfig, ResNetModel  # noqa: F401

import fashionbert_fast.cli
import fashionbert_fast.engine.reporting.plots
import fashionbert_fast.engine.train
import fashionbert_fast.engine.zero.flat
import fashionbert_fast.evaluation.run
import fashionbert_fast.features.encoding
import fashionbert_fast.features.patch_encoder

fashionbert_fast.engine.reporting.plots.plot_run = lambda *_: None  # a second of each run, and of no proof here
PIL.Image.init()
