"""Foundation: training that knows neither colours nor boxes."""
