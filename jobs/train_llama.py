"""Fine-tune a language model with LoRA, the paper's comparison.

    python jobs/train_llama.py --base /models/Llama-3.2-1B-Instruct --run-dir runs/llama-lora
    ray job submit --working-dir . -- python jobs/train_llama.py --base /shared/llama \\
        --run-dir /shared/runs/llama --merge

It learns to answer with the label. Prepares the data first where that is missing or out of date,
fits the adapters on 4-bit weights, and writes those of the best epoch. --merge also writes an
unquantised model with the adapters in its weights, and measures it. A run that was cut short goes
on with --resume, or begins again with --restart. Any setting can be given as a flag.
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.cli import run_job
from sce.workflows.experiment import LlamaExperiment

main = partial(run_job, LlamaExperiment, "sce.workflows.train_llama:train_llama", __doc__)

if __name__ == "__main__":
    sys.exit(main())
