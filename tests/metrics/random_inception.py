"""Weights of the right shape and no training for torch-fidelity's Inception."""

import hashlib

import torch

from gan.networks.reference import REFERENCES


def written(path, monkeypatch):
    """Write such weights, which pass for the known ones; their digest."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    torch.manual_seed(0)
    torch.save({}, path)
    with monkeypatch.context() as patched:
        patched.setattr(Network, "load_state_dict", lambda self, state: None)
        network = Network("inception", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = REFERENCES["inception"]._replace(digest=digest[:8])
    monkeypatch.setitem(REFERENCES, "inception", known)
    return digest
