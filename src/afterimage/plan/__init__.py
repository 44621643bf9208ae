"""What a study consists of: its jobs, their settings, inputs and cost; planned without torch."""
