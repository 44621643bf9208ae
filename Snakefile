include: "workflow/Snakefile"


# `snakemake` without a target is `snakemake all`. An included file cannot say so: its default target does not count.
rule default:
    default_target: True
    input:
        rules.all.input,
