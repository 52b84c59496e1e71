set -x
export PYTHONUNBUFFERED=1 SSLKIT_CACHE=/tmp/cache
nvidia-smi --query-gpu=name --format=csv
python3 -m pip install -q --no-build-isolation --no-deps -e . 2>&1 | tail -2
python3 -c "import torch,timm,typer,pydantic,rich;print(torch.__version__,timm.__version__,typer.__version__,pydantic.VERSION)"
time timeout 300 python3 -m pytest -q -m "cuda" -p no:cacheprovider tests/engine -x --durations=8 2>&1 | tail -40
