"""Networks, schedules and samplers, all from diffusers."""
