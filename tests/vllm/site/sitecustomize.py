"""torchvision's wheel is built for CUDA: beside a CPU build of torch its operators are missing, and importing it fails
where it registers their shapes. Declaring two of them lets the import pass; nothing here calls them."""

import contextlib

with contextlib.suppress(ImportError):
    import torch

    DECLARED = torch.library.Library("torchvision", "FRAGMENT")
    for signature in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        if not torch.version.cuda:
            DECLARED.define(signature)
