//go:build race

package cluster

// race says whether the test runs with the race detector: then so do its processes.
const race = true
