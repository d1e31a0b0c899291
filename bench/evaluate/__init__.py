"""Quality of what ships: benchmark tasks, programs and judged conversations on any Engine, beside the paper's numbers."""
