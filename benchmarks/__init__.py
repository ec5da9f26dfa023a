"""Measurements of coral beside the ways people save weights and track runs today; none is a timed test."""
