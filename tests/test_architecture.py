"""The arrows between the rooms: the core never imports Ray, MLflow or a web framework."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_predictor_loads_without_ray_and_mlflow():
    code = (
        "import sys, sce.predictor\n"
        "assert not {'ray', 'mlflow', 'fastapi'} & set(sys.modules), 'an engine was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jobs_that_ask_no_language_model_do_not_load_what_it_needs():
    code = (
        "import sys, sce.workflows.train, sce.workflows.classify, sce.distributed.embed\n"
        "assert not {'peft', 'bitsandbytes'} & set(sys.modules), 'seconds, and a warning'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_gateway_loads_without_torch():
    code = (
        "import sys, serve.gateway\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'it would take 200 MB more'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_ray_workers_that_read_and_write_load_no_torch():
    code = (
        "import sys, sce.distributed.block_io, sce.bulk.counts\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'each would take 100 MB more'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
