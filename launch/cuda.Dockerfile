# For NVIDIA GPUs; the host brings the driver and the NVIDIA Container Toolkit, JAX's wheels CUDA.
#
#     git archive HEAD | docker build --file launch/cuda.Dockerfile --tag IMAGE -
#     docker run --gpus=all --ipc=host --volume=DIR:/data IMAGE \
#         bash launch/worker.sh run --config=configs/bert_base.py --config.data_dir=/data/… --workdir=/data/…
#
# 3.11: constraints.txt has the versions for it.
FROM python:3.11-slim-bookworm
WORKDIR /bert_jax
COPY . .
ARG EXTRAS=cuda12,gcs
RUN python -m pip install --no-cache-dir -c constraints.txt -e ".[$EXTRAS]"
# PYTHON for launch/worker.sh, which would look for a virtual environment.
ENV PYTHON=python NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["bash"]
