// Numbers as formats.figure writes them on the server.
const SUPERSCRIPTS = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

export function figure(value, significant = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return minus(whole(value));
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size >= -4 && size < 9) {
    const places = Math.max(0, significant - 1 - size);
    const digits = { minimumFractionDigits: places, maximumFractionDigits: places, roundingMode: "halfEven" };
    return minus(value.toLocaleString("en", digits));
  }
  const [mantissa, exponent] = value.toExponential(significant - 1).split("e");
  const raised = [...String(Number(exponent))].map((sign) => SUPERSCRIPTS[sign]).join("");
  return `${minus(String(Number(mantissa)))} × 10${raised}`;
}

export function withUnit(value, unit) {
  return unit ? `${figure(value)} ${unit}` : figure(value);
}

export function points(number) {
  return `${whole(number)} ${number === 1 ? "point" : "points"}`;
}

export function whole(value) {
  return value.toLocaleString("en");
}

function minus(text) {
  return text.replaceAll("-", "−");
}
