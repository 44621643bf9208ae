"""The jobs of a study, their settings, inputs and cost; planned without torch."""
