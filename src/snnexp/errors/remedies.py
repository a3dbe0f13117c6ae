"""What errors of torch and of the machine mean for a user, and what to do about them."""

import re

from snnexp.errors import RunFailed, UserError

CONFIGURATION = {
    r"Expected more than 1 value per channel when training": (
        "batch norm cannot normalise one value: a batch of one sample has come where the layer sees one value per channel. Take a "
        "batch_size (or limit_train) by which no batch, the last one neither, has one sample; or larger inputs."
    ),
    r"Output size is too small|Kernel size can't be greater than actual input size|Calculated padded input size": (
        "the input is too small for the layers of this model: take a larger dataset.size, or a model with fewer strides and poolings."
    ),
    r"mat1 and mat2 shapes cannot be multiplied|expected input\[.*\] to have \d+ channels": (
        "two layers, or the data and the first layer, do not fit one another: check the sizes in model.*, and dataset.size."
    ),
    r"Target -?\d+ is out of bounds|Class values must be": (
        "a label lies outside the classes of the network: leave model.num_classes null, or make it at least the number of classes."
    ),
    r"device-side assert": (
        "an index was out of range on the device, most often a label outside the classes of the network: with device=cpu torch says which."
    ),
    r"does not support (dense|sparse) gradients": "this optimizer is for other layers: choose optimizer=adam, or another.",
    r"does not have a deterministic implementation": (
        "deterministic=true has no kernel for a layer of this model: use deterministic=false, or device=cpu where that has one."
    ),
    r"not deterministic because it uses CuBLAS": (
        "deterministic=true has to be known to cuBLAS before a process first uses it: set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the "
        "environment before Python starts, or use deterministic=false."
    ),
    r"not implemented for '(Half|BFloat16)'|expected .* dtype .*(Half|BFloat16)": (
        "a layer cannot compute in this precision: use precision=fp32."
    ),
    r"Invalid\w*CxxCompiler|No working C\+\+ compiler|Cannot find a working triton|BackendCompilerFailed|backend='inductor' raised": (
        "torch.compile did not succeed: use compile=false, or install a C++ compiler (CPU) or Triton (GPU)."
    ),
}
"""By pattern of an error that torch raises because of the configuration: what it means, and what to do."""

MACHINE = {
    r"DataLoader worker \(pid": (
        "A process that loads batches has ended before its time, probably for want of memory: free some, or use fewer workers."
    ),
    r"DefaultCPUAllocator|can't allocate memory|not enough memory|out of memory|MemoryError|ALLOC_FAILED": (
        "Lower batch_size (and raise accumulate to keep the recipe), or compute in bf16."
    ),
    r"CUDA error: .*(illegal|misaligned|launch failure|launch timed out|ECC|hardware|device lost|busy or unavailable)": (
        "The device has failed, and this process cannot use it any more. The checkpoints are whole: go on with snnexp resume, on another "
        "device if it comes again; with CUDA_LAUNCH_BLOCKING=1 the trace shows the layer."
    ),
    r"unable to open shared memory|insufficient shared memory|unable to mmap .* /torch_|unable to write to file </torch_": (
        "the loader processes need more shared memory: use fewer workers (workers=0 needs none), or a larger /dev/shm."
    ),
    r"Too many open files": "use fewer workers, or raise the limit: ulimit -n 4096.",
    r"EADDRINUSE|address already in use": "another training on this machine has taken the port of the processes; start again.",
}
"""The same for errors that a larger machine, or another moment, would not have."""


def remedy(error: BaseException) -> tuple[str, type[Exception]] | None:
    """Return what an error of torch means and what to do, with the class that tells the exit code; None for an error that is not known."""
    text = f"{type(error).__name__}: {error}"
    for table, kind in ((MACHINE, RunFailed), (CONFIGURATION, UserError)):
        if found := next((advice for pattern, advice in table.items() if re.search(pattern, text, re.IGNORECASE)), None):
            return found, kind
    return None


def first_words(error: BaseException) -> str:
    """Return the message of an error without the traceback that a loader process adds to it."""
    text = str(error).strip()
    if "Original Traceback" in text:
        return text.splitlines()[-1]
    return text.split("\n\n")[0]
