# JupyterLab and the web server. Built and started by docker-compose.yaml.
FROM python:3.11-slim

# cpu, or cu126, cu128, ...: which of PyTorch's wheels to take.
ARG TORCH_INDEX=cpu
ARG LAB_UID=1000

RUN useradd --create-home --uid "$LAB_UID" lab \
 && install -d -o lab -g lab /home/lab/imgsearch /home/lab/imgsearch/output /home/lab/data
WORKDIR /home/lab/imgsearch

# The dependencies first: they change less often than the package.
COPY --chown=lab pyproject.toml requirements.lock README.md LICENSE ./
RUN pip install --no-cache-dir --no-deps -c requirements.lock \
        --index-url "https://download.pytorch.org/whl/$TORCH_INDEX" torch
COPY --chown=lab imgsearch imgsearch
RUN pip install --no-cache-dir -c requirements.lock -e '.[notebooks,openvino,server]'

COPY --chown=lab jupyter jupyter
COPY --chown=lab data data
COPY --chown=lab notebooks notebooks

USER lab
ENV IMGSEARCH_HOME=/home/lab/data \
    JUPYTER_CONFIG_PATH=/home/lab/imgsearch/jupyter \
    PYTHONUNBUFFERED=1
EXPOSE 8888
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8888/api', timeout=5)"]
# All interfaces of the container; docker-compose.yaml publishes the port on loopback only.
CMD ["jupyter", "lab", "--ServerApp.ip=0.0.0.0", "--ServerApp.port=8888", "--no-browser"]
