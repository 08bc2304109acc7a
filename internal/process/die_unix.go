//go:build unix && !linux

package process

import (
	"os/exec"
	"syscall"
)

// dieWithStarter gives a process a group of its own: should its starter die while it is stopped,
// the kernel hangs it up. Else the end of its stdin tells it.
func dieWithStarter(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
