"""SLURM as far as submitit calls it: commands that run a job's tasks here, one job at a time."""

import sys

COMMANDS = "sbatch", "srun", "sacct", "scontrol", "queue"  # the last serves the first
SCRIPT = (
    f"#!{sys.executable} -S"
    + r"""
import os, pathlib, re, subprocess, sys

here, name = os.path.split(sys.argv[0])
given = sys.argv[1:]


def sbatch():
    output = open(here + "/output", "a")
    queue = [here + "/queue", *given]
    subprocess.Popen(queue, start_new_session=True, stdout=output, stderr=output)
    print("Submitted batch job 100")


def queue():
    text = pathlib.Path(given[0]).read_text()
    found = {key: int(value) for key, value in re.findall(r"--([\w-]+)=(?:0-)?(\d+)", text)}
    tasks = found["nodes"] * found["ntasks-per-node"]
    for number in range(found.get("array", 0) + 1):
        array = {"SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": str(number)}
        facts = {
            "SLURM_JOB_ID": str(100 + number),
            "SLURM_NTASKS": str(tasks),
            "SLURM_NTASKS_PER_NODE": str(found["ntasks-per-node"]),
            "SLURM_JOB_NUM_NODES": str(found["nodes"]),
            "SLURM_JOB_NODELIST": "localhost",
        } | (array if "array" in found else {})
        again = pathlib.Path(here, "again")
        again.touch()
        while again.exists():
            again.unlink()
            subprocess.run(["bash", given[0]], env={**os.environ, **facts})


def srun():
    command = given[given.index(next(word for word in given if "/python" in word)) :]
    count = int(os.environ["SLURM_NTASKS"])
    each = int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for rank in range(count):
        place = {"PROCID": rank, "LOCALID": rank % each, "NODEID": rank // each}
        more = {f"SLURM_{key}": str(value) for key, value in place.items()}
        tasks.append(subprocess.Popen(command, env={**os.environ, **more}))
    return max([task.wait() for task in tasks])


def sacct():
    print("JobID|State|NodeList\n100|RUNNING|localhost")


def scontrol():
    assert given[0] == "requeue", given
    pathlib.Path(here, "again").touch()


sys.exit(globals()[name]())
"""
)


def install(folder):
    """Put the commands into a folder."""
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text(SCRIPT)
        (folder / name).chmod(0o755)
