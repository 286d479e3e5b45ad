"""Under SLURM: a job near its time limit saves, asks for another turn and goes on in it."""

from __future__ import annotations

import logging
import os
import subprocess
from signal import Signals

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

_LOG = logging.getLogger("zoo")


def was_requeued() -> bool:
    """Whether this job has had a turn before: the same command then resumes."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def requeue(trainer: Trainer, number: Signals) -> None:
    """Put the job back into the queue, if it was the signal before its time limit that stopped it.

    Call it in one process, after the state was saved.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return
    if number != environment.requeue_signal:
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _LOG.warning("job %s was not requeued (%s): submit it again", job, said.strip())
    else:
        _LOG.info("job %s is back in the queue", job)
