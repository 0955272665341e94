"""GPUs without a GPU: a device plugin for TensorFlow whose devices are those of a cluster file.

    environment = emulated_gpu.environment(read_cluster("configs/emulated_four_gpus.yaml"))
    subprocess.run([sys.executable, "program.py"], env={**os.environ, **environment})

docs/emulated_gpu.md says what is emulated and what is not.
"""

from laboratory.emulated_gpu.environment import environment
from laboratory.emulated_gpu.servers import servers

__all__ = ["environment", "servers"]
