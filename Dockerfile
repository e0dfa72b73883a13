# For machines with NVIDIA GPUs:
#   docker build -t fashionbert_fast .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/workspace" fashionbert_fast demo --out demo_out
# The devel image has nvcc, which compiles our kernels, and DeepSpeed's when a run first needs them.
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-devel
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev && rm -rf /var/lib/apt/lists/*
ENV DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1
RUN pip install "setuptools>=77" wheel "cmake>=3.24" ninja "pybind11>=2.12" \
    && pip install --no-build-isolation "deepspeed>=0.19.8,<0.20"
WORKDIR /opt/fashionbert_fast
COPY pyproject.toml setup.py CMakeLists.txt README.md LICENSE ./
COPY csrc csrc
COPY fashionbert_fast fashionbert_fast
RUN FASHIONBERT_CUDA=ON pip install --no-build-isolation ".[offline]" && rm -rf build
WORKDIR /workspace
ENTRYPOINT ["fashionbert"]
CMD ["doctor"]
