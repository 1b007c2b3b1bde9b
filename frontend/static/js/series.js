// One witness as the browser holds it: what was fetched, and what has arrived since.
import { points, whole, withUnit } from "./numbers.js";

const NAMED = { NaN, Infinity, "-Infinity": -Infinity };

function number(value) {
  if (typeof value === "number") return value;
  return value === null ? NaN : NAMED[value];
}

function finite(value) {
  return Number.isFinite(value) ? value : null;
}

export class Series {
  constructor(name) {
    this.name = name;
    this.clear();
  }

  clear() {
    this.step = []; // of each drawn place
    this.value = []; // a sample, or the mean of a stretch; null where it is not finite
    this.low = [];
    this.high = [];
    this.odd = []; // steps at which a sample is NaN or infinite
    this.oddSamples = new Map(); // step -> that sample, where it is known by itself
    this.total = 0; // samples behind all places
    this.exact = true; // each place is one sample
    this.last = NaN;
    this.lastStep = -1;
  }

  // columns: of one signal, as /signals/data answers
  append(columns) {
    if (columns.value) this.appendSamples(columns);
    else this.appendStretches(columns);
  }

  appendSamples({ step, value }) {
    for (let i = 0; i < step.length; i++) {
      const sample = number(value[i]);
      this.place(step[i], step[i], finite(sample), finite(sample), finite(sample));
      if (!Number.isFinite(sample)) {
        this.odd.push(step[i]);
        this.oddSamples.set(step[i], sample);
      }
      this.last = sample;
    }
    this.total += step.length;
  }

  appendStretches({ step, last_step: lastStep, min, max, mean, last, count, nonfinite }) {
    this.exact = false;
    for (let i = 0; i < step.length; i++) {
      this.place(step[i], lastStep[i], finite(number(mean[i])), finite(number(min[i])), finite(number(max[i])));
      if (nonfinite[i]) this.odd.push(step[i]);
      this.total += count[i];
      this.last = number(last[i]);
    }
  }

  place(step, lastStep, value, low, high) {
    this.step.push(step);
    this.value.push(value);
    this.low.push(low);
    this.high.push(high);
    this.lastStep = Math.max(this.lastStep, lastStep);
  }

  // NaN too for a stretch of which no sample is finite.
  valueAt(place) {
    return this.value[place] ?? this.oddSamples.get(this.step[place]) ?? NaN;
  }

  // As charts._in_words on the server.
  inWords(unit) {
    const least = this.low.reduce((least, value) => (value === null ? least : Math.min(least, value)), Infinity);
    const most = this.high.reduce((most, value) => (value === null ? most : Math.max(most, value)), -Infinity);
    const range = least > most ? ", none of them finite" : ` between ${withUnit(least, unit)} and ${withUnit(most, unit)}`;
    return `${this.name}: ${withUnit(this.last, unit)} at step ${whole(this.lastStep)}; ${points(this.total)}${range}.`;
  }

  // The place nearest to a step; -1 where there is none.
  near(step) {
    const { step: steps } = this;
    if (!steps.length) return -1;
    let low = 0;
    let high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  }
}
