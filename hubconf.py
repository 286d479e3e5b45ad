"""torch.hub: torch.hub.load("ORG/REPO", "load", "cdt_tiny.clips", trust_repo=True)."""

from zoo import create, list_models, load

__all__ = ["create", "list_models", "load"]

dependencies = ["av", "diffusers", "einops", "huggingface_hub", "safetensors", "torch"]
