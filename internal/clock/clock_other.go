//go:build !linux

package clock

// System is time.Now's monotonic reading.
func System() Clock { return Monotonic() }
