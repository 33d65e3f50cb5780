"""What a model costs: parameters, bytes, time; and what projections of attention maps would."""
