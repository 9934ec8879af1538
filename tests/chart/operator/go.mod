// The resources of prometheus-operator, which the tests validate the chart's monitors and rules by: tests/run chart.
module keytide.dev/tests/chart/operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
