// The path of the start page, "/" or what a proxy puts before it: this file lies in static/js below.
export const root = new URL("../../", import.meta.url).pathname;
