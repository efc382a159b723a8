"""Run networks over a tomogram: score maps out."""
