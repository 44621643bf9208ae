"""Networks, schedules and samplers, all of them diffusers' own."""
