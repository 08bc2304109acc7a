package main

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A chart is lines over one pair of axes.
type chart struct {
	title, x, y string
	logX, logY  bool
	steps       bool // the lines are of distributions
	lines       []line
}

// A line has the name of what it shows.
type line struct {
	name   string
	points plotter.XYs
}

const (
	chartWidth  = 24 * vg.Centimeter
	chartHeight = 12 * vg.Centimeter
	legendWidth = 6 * vg.Centimeter
	chartMargin = vg.Centimeter / 2
)

// write makes folder's plots/name, an SVG.
func (c chart) write(folder, name string) error {
	canvas := vgsvg.New(chartWidth, chartHeight)
	if err := c.draw(draw.New(canvas)); err != nil {
		return err
	}
	path := filepath.Join(folder, plotsFolder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(f)
	return errors.Join(err, f.Close())
}

// draw leaves room for the legend beside the plot, where it hides nothing.
func (c chart) draw(canvas draw.Canvas) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.BackgroundColor = color.White
	p.Legend.Top, p.Legend.Left = true, true
	if c.logX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(logTicks)
	}
	if c.logY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(logTicks)
	}
	p.Add(plotter.NewGrid())
	for i, l := range c.lines {
		if err := c.add(p, i, l); err != nil {
			return err
		}
	}
	if c.logX {
		p.X.Min, p.X.Max = logRange(p.X.Min, p.X.Max)
	}
	if c.logY {
		p.Y.Min, p.Y.Max = logRange(p.Y.Min, p.Y.Max)
	}
	legend := p.Legend
	p.Legend = plot.NewLegend()
	p.Draw(draw.Crop(canvas, 0, -legendWidth, 0, 0))
	legend.Draw(draw.Crop(canvas, chartWidth-legendWidth+chartMargin, 0, 0, -2*chartMargin))
	return nil
}

// add leaves out what has no place on a logarithmic axis.
func (c chart) add(p *plot.Plot, i int, l line) error {
	l.points = slices.DeleteFunc(slices.Clone(l.points), func(p plotter.XY) bool {
		return c.logX && p.X <= 0 || c.logY && p.Y <= 0
	})
	if len(l.points) == 0 { // it would be an error
		return nil
	}
	drawn, points, err := plotter.NewLinePoints(l.points)
	if err != nil {
		return err
	}
	drawn.Color, points.Color = plotutil.Color(i), plotutil.Color(i)
	drawn.Dashes, points.Shape = plotutil.Dashes(i/7), plotutil.Shape(i)
	if c.steps {
		drawn.StepStyle = plotter.PostStep
		p.Add(drawn)
		p.Legend.Add(l.name, drawn)
		return nil
	}
	p.Add(drawn, points)
	p.Legend.Add(l.name, drawn, points)
	return nil
}

// logRange widens what a logarithmic axis can't show: one value only, or none, which would be a
// panic.
func logRange(least, most float64) (float64, float64) {
	switch {
	case least > most || least <= 0: // without values it is from +Inf to -Inf
		return 1, 10
	case least == most:
		return least / 2, most * 2
	}
	return least, most
}

// logTicks has 1, 2 and 5 of each decade, with their labels.
func logTicks(least, most float64) (ticks []plot.Tick) {
	for decade := math.Pow(10, math.Floor(math.Log10(least))); decade <= most; decade *= 10 {
		for _, n := range []float64{1, 2, 5} {
			if v := n * decade; v >= least && v <= most {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.4g", v)})
			}
		}
	}
	return ticks
}
