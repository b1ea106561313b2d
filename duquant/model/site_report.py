"""What a site's transform did to its activation, stage by stage, for logs and pictures."""

from dataclasses import dataclass

from torch import Tensor

from duquant.transforms.transform import Transform


@dataclass(frozen=True)
class SiteReport:
    """Channel magnitudes of one site's calibration tensor.

    Attributes:
        magnitudes: ``max|x|`` per channel, float32 ``(width,)`` on the CPU, by stage: original,
            smoothed, and those of the site's transform. What did not happen is left out.
    """

    magnitudes: dict[str, Tensor]

    @property
    def peak_before(self) -> float:
        """Largest magnitude that the full-precision linears would see."""
        return float(self.magnitudes["original"].max())

    @property
    def peak_after(self) -> float:
        """Largest magnitude that is quantized."""
        return float(list(self.magnitudes.values())[-1].max())


def report_site(x: Tensor, scale: Tensor | None, transform: Transform) -> SiteReport:
    """Follow a calibration tensor through its transform.

    Args:
        x: smoothed calibration tensor ``(tokens, width)``.
        scale: smoothing scale ``(width,)`` that was divided out, or ``None``.
        transform: the site's transform.
    """
    stages = {"original": x if scale is None else x * scale.to(x.device)}
    if scale is not None:
        stages["smoothed"] = x
    stages.update(transform.stages(x))
    return SiteReport(
        {name: stage.abs().amax(dim=0).float().cpu() for name, stage in stages.items()}
    )
