"""The frozen network: how each base is built, its weights, and the compiled function from pixels to features.

Imports `storage`; knows nothing of sources."""
