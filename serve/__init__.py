"""The endpoint: SCE inference over HTTP on Ray Serve."""
