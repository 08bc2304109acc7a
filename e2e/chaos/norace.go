//go:build linux && !race

package chaos

const race = false
