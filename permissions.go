package main

import (
	"log/slog"
	"os"

	"ipipou/instance/check"
	"ipipou/plans"
)

// warnOpen warns of a file that others can read or write.
func warnOpen(log *slog.Logger, s plans.Source) {
	for _, fault := range check.Exposed(s, os.Stat) {
		log.Error(fault)
	}
}
