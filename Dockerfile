# The server with its dashboard. Training code needs no image: `pip install trainsanity`.

FROM node:20-slim AS frontend
WORKDIR /src/frontend
COPY frontend/package.json frontend/package-lock.json frontend/.npmrc ./
RUN npm ci
COPY frontend/ ./
RUN npm run build

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY . .
COPY --from=frontend /src/frontend/static/vendor frontend/static/vendor
RUN PIP_CONSTRAINT=constraints.txt pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home trainsanity
COPY constraints.txt /tmp/
COPY --from=wheel /wheels /tmp/wheels
RUN wheel=$(ls /tmp/wheels/*.whl) \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt "${wheel}[server]" \
 && rm -r /tmp/wheels /tmp/constraints.txt
USER trainsanity
EXPOSE 8321
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD \
  ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8321/readyz', timeout=4)"]
ENTRYPOINT ["trainsanity"]
# Other machines reach it only with a key: set TRAINSANITY_API_KEYS.
CMD ["serve", "--host", "0.0.0.0", "--port", "8321"]
