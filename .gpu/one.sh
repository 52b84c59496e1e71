set -x
export PYTHONUNBUFFERED=1 SSLKIT_CACHE=/tmp/cache
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site
python3 -m pip install -q --no-build-isolation --no-deps -e . 2>&1 | tail -2
python3 -c "import torch,timm,typer,pydantic,rich,filelock,sklearn,safetensors;print(torch.__version__,timm.__version__,typer.__version__,pydantic.VERSION)"
time timeout 330 python3 -m pytest -q -m "cuda" -p no:cacheprovider tests/engine --durations=8 2>&1 | tail -60
