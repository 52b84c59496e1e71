#!/usr/bin/env bash
# Run benchmarks/gpu.py on a machine without network that has torch, torchvision, timm, typer, rich, safetensors, numpy, pillow,
# scikit-learn, scipy, matplotlib, setuptools and pytest.
#
#   bash benchmarks/gpu.sh prepare CIFAR10.tar.gz     where there is a network: fill .whl/ and .gpu-data/ (at most 64 MiB)
#   bash benchmarks/gpu.sh run a,b,c --seconds 240    there, in a copy of this folder with .whl/ and .gpu-data/
#
# CIFAR10.tar.gz holds images in train/CLASS/ and test/CLASS/. Results go to $OUT, or to benchmarks/gpu; further arguments
# go to gpu.py. PYTHON names another interpreter; SSLKIT_COMMIT another commit than that of the preparation.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

prepare() {
    rm -rf .whl .gpu-data
    mkdir .gpu-data
    # What an image with torch lacks, for Python 3.12 on x86-64; soundfile is for the tests of tasks on sound.
    for wanted in "pydantic filelock threadpoolctl" "--no-deps soundfile cffi pycparser"; do
        # shellcheck disable=SC2086
        "$python" -m pip download -q --only-binary=:all: --python-version 3.12 --implementation cp \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl $wanted
    done
    if [ $# -gt 0 ]; then cp "$1" .gpu-data/cifar10.tar.gz; fi
    git describe --always --dirty --abbrev=12 --exclude='*' > .gpu-data/commit
    du -sh .whl .gpu-data
    if [ "$(du -cm .whl .gpu-data | tail -1 | cut -f1)" -gt 64 ]; then echo "more than 64 MiB" >&2; exit 1; fi
}

run() {
    parts=$1
    shift
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    install=("$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site")
    "${install[@]}" .whl/*.whl
    # The package itself: its entry points list the tasks, and sslkit_plugins is the folder plugins.
    "${install[@]}" --no-build-isolation .
    SSLKIT_COMMIT=${SSLKIT_COMMIT:-$(cat .gpu-data/commit)}
    export SSLKIT_COMMIT PYTHONPATH="$site"
    "$python" benchmarks/gpu.py --only "$parts" --out "${OUT:-benchmarks/gpu}" "$@"
}

case "${1:-}" in
    prepare | run) "$@" ;;
    *) sed -n '2,9p' "$0" >&2; exit 2 ;;
esac
