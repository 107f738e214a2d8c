"""The status of a lung mask from its numbers.

The limits of anatomy (volumes, ratio, mean) are wide usual ranges. Those of dense disease, gas and cut were set on a
few public scans and on scans made from them by painting disease in; how often they are right on other patients is
unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from ctnode.config import LungMask
from ctnode.ct.gas import SMALLEST_PIECE_ML
from ctnode.ct.sides import Sides
from ctnode.words import LungStatus

# Outside these limits a mask is SUSPECT.
USUAL_RATIO: Final = (0.82, 1.65)
USUAL_TOTAL_ML: Final = (1500.0, 10000.0)
USUAL_MEAN_HU: Final = (-920.0, -650.0)
USUAL_TRACHEA_HU: Final = (-1060.0, -930.0)
LARGEST_CUT_CM2: Final = 60.0
LARGEST_CUT_THICKNESS_MM: Final = 30.0
LARGEST_ADDED_SHARE: Final = 0.12
LARGEST_GAS_ML: Final = 100.0
LARGEST_WALL_GAP_ML: Final = 40.0
LARGEST_ENCLOSED_MASS_ML: Final = 50.0
LARGEST_BASE_DIFFERENCE_MM: Final = 45.0
LARGEST_BACK_MISSING_MM: Final = 20.0
# A lung is cut off if the first or the last plane, or the edge of the field of view, shows more of it than this.
LARGEST_EDGE_CM2: Final = 1.0


def judge(quality: Mapping[str, float], sides: Sides, settings: LungMask) -> tuple[LungStatus, tuple[str, ...]]:
    """Return the status and all reasons."""
    truncated = _truncated(quality)
    suspect = [reason for holds, reason in _checks(quality, sides, settings, cut_off=bool(truncated)) if holds]
    if truncated:
        return LungStatus.TRUNCATED, (*truncated, *suspect)
    return (LungStatus.SUSPECT, tuple(suspect)) if suspect else (LungStatus.OK, ())


def _truncated(quality: Mapping[str, float]) -> list[str]:
    reasons = [
        f"the lungs are cut off at the {where}: {quality[key]:.1f} cm2 in the outermost plane"
        for key, where in (("lowest_plane_cm2", "lower end"), ("highest_plane_cm2", "upper end"))
        if quality[key] > LARGEST_EDGE_CM2
    ]
    if quality["fov_cut_cm2"] > LARGEST_EDGE_CM2:
        reasons.append(f"the field of view cuts the lungs: {quality['fov_cut_cm2']:.1f} cm2 at its edge")
    return reasons


def _checks(
    quality: Mapping[str, float], sides: Sides, settings: LungMask, *, cut_off: bool
) -> tuple[tuple[bool, str], ...]:
    total, ratio = quality["right_ml"] + quality["left_ml"], quality["right_left_ratio"]
    alone = min(quality["right_ml"], quality["left_ml"]) < SMALLEST_PIECE_ML
    share, trachea_hu = quality["mask_share_pct"], quality["trachea_mean_hu"]
    cut_at_the_base = quality["lowest_plane_cm2"] > LARGEST_EDGE_CM2
    return (
        (alone, "only one lung was found"),
        (
            not alone and not USUAL_RATIO[0] <= ratio <= USUAL_RATIO[1],
            f"right to left volume is {ratio:.2f}, usual is {USUAL_RATIO[0]} to {USUAL_RATIO[1]}",
        ),
        (sides.unsure and not sides.crossing, "its side is the side of the midline on which most of it lies"),
        (sides.unsure and sides.crossing, "it may be both: it crosses the midline and could not be cut apart"),
        # A cut lung is small for a reason that was already given.
        (
            not cut_off and not USUAL_TOTAL_ML[0] <= total <= USUAL_TOTAL_ML[1],
            f"the total volume of {total:.0f} ml is unusual",
        ),
        (
            not USUAL_MEAN_HU[0] <= quality["mean_hu"] <= USUAL_MEAN_HU[1],
            f"the mean of {quality['mean_hu']:.0f} HU is unusual for lungs",
        ),
        (
            quality["cut_cm2"] > LARGEST_CUT_CM2 or quality["cut_thickness_mm"] > LARGEST_CUT_THICKNESS_MM,
            f"the lungs touch over {quality['cut_cm2']:.0f} cm2; the cut between them is uncertain",
        ),
        (
            quality["added_dense_share"] > LARGEST_ADDED_SHARE,
            f"{100.0 * quality['added_dense_share']:.0f} % of the mask is dense tissue",
        ),
        (
            quality["wall_gap_ml"] > LARGEST_WALL_GAP_ML,
            f"about {quality['wall_gap_ml']:.0f} ml of dense tissue lie between the lungs and the ribs",
        ),
        (
            quality["enclosed_mass_ml"] > LARGEST_ENCLOSED_MASS_ML,
            f"about {quality['enclosed_mass_ml']:.0f} ml of dense tissue amid the lungs are left out",
        ),
        (
            not cut_at_the_base and quality["base_difference_mm"] > LARGEST_BASE_DIFFERENCE_MM,
            f"one lung ends {quality['base_difference_mm']:.0f} mm above the other",
        ),
        (
            not cut_at_the_base and quality["back_missing_mm"] > LARGEST_BACK_MISSING_MM,
            f"a lung ends {quality['back_missing_mm']:.0f} mm higher at the back than at the side: fluid or dense lung",
        ),
        (
            quality["gas_pocket_ml"] > LARGEST_GAS_ML,
            f"{quality['gas_pocket_ml']:.0f} ml of plain gas: bulla, pneumothorax or bowel",
        ),
        (bool(quality["threshold_clamped"]), "the threshold of this scan is outside the usual range"),
        (
            not settings.least_share_pct <= share <= settings.most_share_pct,
            f"the lungs are {share:.1f} % of the volume, outside the limits that are set",
        ),
        (not quality["trachea_found"], "no trachea was found"),
        (
            not math.isnan(trachea_hu) and not USUAL_TRACHEA_HU[0] <= trachea_hu <= USUAL_TRACHEA_HU[1],
            f"air in the trachea measures {trachea_hu:.0f} HU: the scanner's calibration is in doubt",
        ),
    )
