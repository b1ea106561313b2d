"""The transforms by the names that recipes give them."""

from duquant.recipe_parts import RotationConfig
from duquant.transforms.affine_permute import AffinePermute
from duquant.transforms.identity import Identity
from duquant.transforms.rotate_permute import RotatePermute
from duquant.transforms.transform import Transform

TRANSFORMS: dict[str, type[Transform]] = {
    "none": Identity,
    "rotate_permute": RotatePermute,
    "affine_permute": AffinePermute,
}


def transform_class(options: RotationConfig) -> type[Transform]:
    """The transform that a recipe asks for.

    Raises:
        ValueError: for a name that is not in the table, listing those that are.
    """
    name = "none" if options.selector == "none" else options.transform
    if name not in TRANSFORMS:
        raise ValueError(
            f"rotation.transform is {name!r}; it must be one of {', '.join(TRANSFORMS)}"
        )
    return TRANSFORMS[name]
