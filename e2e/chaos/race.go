//go:build linux && race

package chaos

// race says whether this program runs with the race detector: then so do its processes.
const race = true
