"""GPUs by their data sheets, for which XLA compiles on a machine without one.

    pip install --no-deps --target cuda jax-cuda12-plugin==0.10.2 \
        jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12

No driver is needed. What the compiler would try on the device (the tilings of
products) is left at its defaults; kernels, what they read and write, and the
plan of memory are the compiler's own.
"""

import os
import pathlib

# Name, compute capability, processors, lanes for float32 in each, GB/s, MiB of
# second cache, GHz, GiB, KiB of shared memory of a processor and of a block.
DATA_SHEETS = {
    "p100": ("Tesla P100-SXM2-16GB", "6", 56, 64, 732, 4, 1.48, 16, 64, 48),
    "v100": ("Tesla V100-SXM2-16GB", "7", 80, 64, 900, 6, 1.53, 16, 96, 96),
    "a100": (
        "NVIDIA A100-SXM4-40GB",
        *("8", 108, 64, 1555, 40, 1.41, 40, 164, 163),
    ),
    "h100": (
        "NVIDIA H100 80GB HBM3",
        *("9", 132, 128, 3352, 50, 1.98, 80, 228, 227),
    ),
}


def add_arguments(command):
    command.add_argument("--chip", default="a100", choices=DATA_SHEETS)
    command.add_argument(
        "--cuda",
        type=pathlib.Path,
        default=pathlib.Path("cuda"),
        help="where pip's `--target` put the plugin and the compiler of CUDA",
    )


def set_environment(cuda):
    """To be called before JAX is imported."""
    nvcc = cuda.resolve() / "nvidia" / "cuda_nvcc"
    if not nvcc.is_dir():
        raise SystemExit(f"'{cuda}' has no 'nvidia/cuda_nvcc'.\n\n{__doc__}")
    os.environ.update(
        JAX_PLATFORMS="cpu",
        CUDA_VISIBLE_DEVICES="-1",
        XLA_FLAGS=f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={nvcc}",
        PATH=f"{nvcc / 'bin'}:{os.environ['PATH']}",
    )


def device(chip, cuda):
    """A device of JAX to compile for."""
    import jax
    from jax._src import xla_bridge
    from jax._src.lib import xla_client
    from jax.experimental import topologies

    known = xla_bridge.canonicalize_platform

    def canonical(platform):
        # JAX looks for a device of the platform that it lowers for.
        try:
            return known(platform)
        except RuntimeError:
            return "cuda"

    xla_bridge.canonicalize_platform = canonical
    # What is traced is for the GPU, though a processor holds the arrays.
    jax.default_backend = lambda: "gpu"
    plugin = cuda.resolve() / "jax_plugins/xla_cuda12/xla_cuda_plugin.so"
    api = xla_client.load_pjrt_plugin_dynamically("cuda", str(plugin))
    xla_client.initialize_pjrt_plugin("cuda")
    topology = xla_client.make_c_api_device_topology(
        api, "", target_config=description(chip), topology="1x1x1"
    )
    devices = topology._make_compile_only_devices()
    return topologies.TopologyDescription(devices).devices[0]


def description(chip):
    """What XLA asks of a GPU, in its own format."""
    name, major, processors, lanes, speed, cache, clock, memory, *shared = (
        DATA_SHEETS[chip]
    )
    of_processor, of_block = shared
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {of_processor * 2**10}
  shared_memory_per_block_optin: {of_block * 2**10}
  threads_per_core_limit: 2048
  core_count: {processors}
  fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {speed * 10**9}
  l2_cache_size: {cache * 2**20}
  clock_rate_ghz: {clock}
  device_memory_size: {memory * 2**30}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{name}"
"""
