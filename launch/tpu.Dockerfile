# For Cloud TPU on GKE. From a commit, without what lies around in the checkout:
#
#     git archive HEAD | docker build --file launch/tpu.Dockerfile --tag IMAGE -
#
# 3.11: constraints.txt has the versions for it.
FROM python:3.11-slim-bookworm
WORKDIR /bert_jax
COPY . .
ARG EXTRAS=tpu,gcs
RUN python -m pip install --no-cache-dir -c constraints.txt -e ".[$EXTRAS]"
# For launch/worker.sh, which would look for a virtual environment.
ENV PYTHON=python
CMD ["bash"]
