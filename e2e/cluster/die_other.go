//go:build unix && !linux

package cluster

import (
	"os/exec"
	"syscall"
)

// dieWithTest gives a process a group of its own: should the test die while it is stopped, the kernel hangs it up.
func dieWithTest(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
