#!/usr/bin/python3
"""A look at what `btcchat scene` wrote with QGIS itself: scene_in_qgis.py OUT(.gpkg) BEFORE PICTURE.png draws the layer in its stored style over
the change map over the before image, and fails if QGIS cannot open one of them or finds no style. Not part of `make test`: needs the
packages qgis and python3-qgis. Without a screen: QT_QPA_PLATFORM=offscreen."""
import sys

from qgis.core import Qgis, QgsApplication, QgsMapRendererSequentialJob, QgsMapSettings, QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor

stem, before, picture = sys.argv[1].removesuffix('.gpkg'), *sys.argv[2:4]
QgsApplication.setPrefixPath('/usr', True)
app = QgsApplication([], False)
app.initQgis()
layer = QgsVectorLayer(f'{stem}.gpkg|layername=changes', 'changes')
heat, ground = QgsRasterLayer(f'{stem}.heat.tif', 'change map'), QgsRasterLayer(before, 'before')
for one in (layer, heat, ground):
    if not one.isValid():
        sys.exit(f'QGIS {Qgis.QGIS_VERSION} cannot open {one.name()}')
styles = [type(one.renderer()).__name__ for one in (layer, heat)]
if styles != ['QgsRuleBasedRenderer', 'QgsSingleBandPseudoColorRenderer'] or not layer.labelsEnabled():
    sys.exit(f'styles were not applied: {styles}, labels {layer.labelsEnabled()}')
view = QgsMapSettings()
view.setLayers([layer, heat, ground])
view.setDestinationCrs(ground.crs())
view.setExtent(layer.extent())
view.setOutputSize(QSize(1000, 800))
view.setBackgroundColor(QColor('white'))
job = QgsMapRendererSequentialJob(view)
job.start()
job.waitForFinished()
if not job.renderedImage().save(picture):
    sys.exit(f'cannot write {picture}')
print(f'QGIS {Qgis.QGIS_VERSION}: {layer.featureCount()} windows, {layer.crs().authid()}, map {heat.width()} x {heat.height()}')
del job, view, layer, heat, ground, one  # while the application still stands, or leaving crashes
app.exitQgis()
