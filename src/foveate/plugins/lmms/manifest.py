"""The entry point of the group `lmms_eval.models`; apart from `lmms.py`, which imports what is loading this."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

manifest = ModelManifest(model_id="foveate", chat_class_path="foveate.plugins.lmms.model.Foveate")
