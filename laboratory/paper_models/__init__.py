"""Models at the scale of papers, as SavedModels without weights (`graph_only`).

Each is made from a public configuration, which `PaperModel.source` names.
"""

from __future__ import annotations

from collections.abc import Mapping

from laboratory.paper_models import biology, language, practice, vision
from laboratory.paper_models.model import PaperModel

MODELS: Mapping[str, PaperModel] = {
    **vision.MODELS,
    **language.MODELS,
    **biology.MODELS,
    **practice.MODELS,
}
"""By name."""

__all__ = ["MODELS", "PaperModel"]
