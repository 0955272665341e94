"""Placement learned by trial, episode after episode."""
